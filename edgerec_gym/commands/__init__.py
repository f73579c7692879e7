"""The subcommands of `edgerec`, grouped by subject; cli.py registers them."""
