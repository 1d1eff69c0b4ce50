-- Make the stream and those of its groups that are missing: at done_through, so that nothing unread is passed.
-- KEYS: images, state.  ARGV: the groups, that which answers first.
redis.call('HDEL', KEYS[2], '')  -- a full server lets a script go on whose first write takes no memory
local start = redis.call('HGET', KEYS[2], 'done_through') or '0-0'
for i, group in ipairs(ARGV) do
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], group, start, 'MKSTREAM')
  if not made.err then
    if i == 1 then
      redis.call('HDEL', KEYS[2], 'gone')  -- lost.lua begins anew: what was answered is read again
    end
  elseif not string.find(made.err, 'BUSYGROUP', 1, true) then
    return made
  end
end
return 1
