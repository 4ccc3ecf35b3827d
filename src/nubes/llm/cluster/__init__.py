"""Several engines as one: who gets a request, which running requests move, how many engines there are."""
