"""What administrators may ask of this company, one file a subject. A verb runs in the supervisor: it orders
actors about (`runtime.root`) and answers once what it says is so."""
