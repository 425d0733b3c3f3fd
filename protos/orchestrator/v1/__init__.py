"""Version 1 of the orchestrator contract: `orchestrator_pb2` and `orchestrator_pb2_grpc`."""
