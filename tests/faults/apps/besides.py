TEXT = "from the module beside"
