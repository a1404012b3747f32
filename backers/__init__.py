"""What serves a tree or a store: the node protocol, and one module per backer."""
