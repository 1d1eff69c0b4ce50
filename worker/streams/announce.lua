-- Say what a worker of a fleet says of itself; returns 1 if nothing of it stood there.
-- KEYS: workers.  ARGV: name, JSON.
redis.call('HDEL', KEYS[1], '')  -- a full server lets a script go on whose first write takes no memory
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
