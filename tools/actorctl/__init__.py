"""`actorctl`: serve a company in the foreground, and administer a running one over its socket."""
