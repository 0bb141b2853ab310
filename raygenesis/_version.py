"""The version, recorded in every manifest and model card."""

__version__ = "0.1.0"
