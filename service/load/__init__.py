"""Load on a deployment of the service, and what came of it."""
