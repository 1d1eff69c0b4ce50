-- Whether an image is the first of its id in a window of the line's images; asked again, the answer is the same.
-- KEYS: seen (id -> whose it is), order (owner and id, oldest first).  ARGV: window, id, whose (entry and place).
-- A place in the order of an image that was given up meanwhile takes nothing from who has the id now.
local owner = redis.call('HGET', KEYS[1], ARGV[2])
if owner then
  return owner == ARGV[3] and 1 or 0
end
redis.call('HDEL', KEYS[1], '')  -- a full server lets a script go on whose first write takes no memory
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('RPUSH', KEYS[2], ARGV[3] .. ' ' .. ARGV[2])
while redis.call('LLEN', KEYS[2]) > tonumber(ARGV[1]) do
  local place = redis.call('LPOP', KEYS[2])
  local whose, id = string.match(place, '^(%d+%-%d+/%d+) (.*)$')
  if not id then  -- a release before this put down the id alone
    redis.call('HDEL', KEYS[1], place)
  elseif redis.call('HGET', KEYS[1], id) == whose then
    redis.call('HDEL', KEYS[1], id)
  end
end
return 1
