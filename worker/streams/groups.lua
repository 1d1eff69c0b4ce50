-- Make the stream and those of its groups that are missing: at done_through, so that nothing unread is passed. A group
-- beyond the stream's end, which nothing new would reach, is set back to there.
-- A stream that is missing, ends before done_through, or has an entry up to it, which would have been trimmed, is not the
-- one that was answered: that was deleted, and had its ids of a clock that was ahead. The groups begin at the start, and
-- what is remembered of the other is dropped.
-- Stands behind lost.lua.  KEYS: images, state.  ARGV: the groups, that which answers first.
redis.call('HDEL', KEYS[2], '')  -- a full server lets a script go on whose first write takes no memory
local start, last, delivered = redis.call('HGET', KEYS[2], 'done_through') or '0-0', '0-0', {}
if not string.match(start, '^%d+%-%d+$') then
  return redis.error_reply('ERR ' .. KEYS[2] .. ' has done_through "' .. start .. '", expected an entry id such as '
    .. '1718000000000-0: HSET it to the id before the first entry in ' .. KEYS[1] .. ', or to 0-0 where that is not '
    .. 'known; a group that is gone begins there, and answers again what nobody trimmed')
end
local stream = redis.pcall('XINFO', 'STREAM', KEYS[1])
if not stream.err then
  last = field(stream, 'last-generated-id')
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    delivered[field(group, 'name')] = field(group, 'last-delivered-id')
  end
elseif not string.find(stream.err, 'no such key', 1, true) then
  return stream
end
local first = not stream.err and field(stream, 'first-entry')
if is_after(start, last) or first and not is_after(first[1], start) then
  start = '0-0'
  redis.call('HDEL', KEYS[2], 'done_through')
end
for i, group in ipairs(ARGV) do
  local at = delivered[group]
  if not at then
    redis.call('XGROUP', 'CREATE', KEYS[1], group, start, 'MKSTREAM')
  elseif is_after(at, last) then
    redis.call('XGROUP', 'SETID', KEYS[1], group, start)
  end
  if i == 1 and (not at or is_after(at, last)) then
    redis.call('HDEL', KEYS[2], 'gone')  -- lost.lua begins anew: what was answered is read again
  end
end
return 1
