"""The configuration file of a service, ``capstore.toml``."""
