"""What is made of a trace's records: the life of a request, a file for Perfetto, OpenTelemetry's spans."""
