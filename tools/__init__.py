"""What a person types: the ``capstore`` command."""
