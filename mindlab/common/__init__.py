"""Ground floor: errors, files, run folders' manifests, command lines, the machine."""
