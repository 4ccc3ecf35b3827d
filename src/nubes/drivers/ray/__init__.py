"""A Ray cluster's machines: Ray tells which there are, places an agent on each and moves large objects between them."""
