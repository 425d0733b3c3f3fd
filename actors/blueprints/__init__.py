"""The shipped blueprints: small ones, for trying the service and its workers. See examples/blueprints/."""
