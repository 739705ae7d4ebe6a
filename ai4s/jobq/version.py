"""The one place that holds the version; packaging and messages read it from here."""

__version__ = "4.0.0.dev0"
