"""What administrators may ask of this company, one file for each subject. A verb runs in the supervisor: it
sends orders to actors (`runtime.root`), and answers once its answer is true."""
