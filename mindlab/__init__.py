"""mindlab: teach and measure LLM news recommendation honestly, on Microsoft's MIND."""

__version__ = "0.1.0"
