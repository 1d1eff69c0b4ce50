"""The worker: learns what normal parts look like from Redis Streams, then publishes a verdict for every part."""
