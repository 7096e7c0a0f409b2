"""From a request to run folders and tables: comparing, blending, keeping, making again."""
