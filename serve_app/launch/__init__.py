"""How the service starts and ends on one machine: Redis, Ray, Serve, and what a dead run left behind."""
