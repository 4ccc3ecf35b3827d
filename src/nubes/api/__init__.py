"""What the declarative API is made of; users find all of it in `nubes`."""
