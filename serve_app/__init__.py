"""The edge: HTTP, gRPC and the command line around one application."""
