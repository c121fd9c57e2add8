"""omnilib: MGM-Omni (arXiv 2509.25131) to read, train, re-run and trust."""

__version__ = "0.1.0"
