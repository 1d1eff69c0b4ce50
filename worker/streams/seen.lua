-- Whether an image is the first of its id in a window of the line's images; asked again, the answer is the same.
-- KEYS: seen (id -> whose it is), order (ids, oldest first).  ARGV: window, id, whose (entry and place).
local owner = redis.call('HGET', KEYS[1], ARGV[2])
if owner then
  return owner == ARGV[3] and 1 or 0
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('RPUSH', KEYS[2], ARGV[2])
while redis.call('LLEN', KEYS[2]) > tonumber(ARGV[1]) do
  redis.call('HDEL', KEYS[1], redis.call('LPOP', KEYS[2]))
end
return 1
