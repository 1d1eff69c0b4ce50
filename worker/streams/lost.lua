-- How many entries are gone that nobody has answered. Stands before fenced.lua and groups.lua.
-- Of all entries ever added, each is answered, pending, still to be read, or gone: trimmed, deleted or acknowledged by
-- somebody else. Those still to be read can be counted without reading them where all or none of the stream is; at other
-- times nothing is told, and the next look tells it all. What is gone is told once: `gone` in the state hash is what was
-- known of at the last look. Servers before 7.0 do not say how many were added; as if none had been since the last look,
-- no more is told than has gone of what that look saw.
local function field(info, name)
  for i = 1, #info, 2 do
    if info[i] == name then
      return info[i + 1]
    end
  end
end
local function is_less(a, b)  -- of 64 bits, in decimal
  return #a < #b or (#a == #b and a < b)
end
local function is_after(a, b)  -- of ids
  local a_ms, a_seq = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_seq = string.match(b, '(%d+)-(%d+)')
  return is_less(b_ms, a_ms) or (a_ms == b_ms and is_less(b_seq, a_seq))
end
local function unread(stream, delivered)
  local first, last = field(stream, 'first-entry'), field(stream, 'last-entry')
  if not last or not is_after(last[1], delivered) then
    return 0
  elseif is_after(first[1], delivered) then
    return field(stream, 'length')
  end
end
local function tell_lost(images, state, name)
  local stream = redis.call('XINFO', 'STREAM', images)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', images)) do
    local waiting = field(group, 'name') == name and unread(stream, field(group, 'last-delivered-id'))
    if waiting then
      local answered = redis.call('HGET', state, 'answered') or 0
      local gone = (field(stream, 'entries-added') or 0) - answered - field(group, 'pending') - waiting
      local lost = math.max(0, gone - (redis.call('HGET', state, 'gone') or gone))
      redis.call('HSET', state, 'gone', string.format('%.0f', gone))
      if lost > 0 then
        redis.call('HINCRBY', state, 'lost', lost)
      end
      return lost
    end
  end
  return 0
end
