-- Keep a part for review, within a number of entries and of the pictures' bytes. Stands before gate.lua and fenced.lua.
-- `total` is the bytes of all pictures ever kept up to this one: what is kept now is the difference of the two ends. What
-- a person has dropped from between counts on until the entries before it are gone: too little is kept then, not too much.
local REVIEW = {'entry', 'id', 'why', 'score', 'threshold', 'model', 'image', 'learned'}
local IMAGE = 7  -- of these
local function field_of(entry, name)
  for i = 1, entry and #entry[2] or 0, 2 do
    if entry[2][i] == name then
      return entry[2][i + 1]
    end
  end
  return ''
end
local function keep_for_review(key, max_entries, max_bytes, argv, first)
  local fields = {}
  for j, name in ipairs(REVIEW) do
    fields[2 * j - 1], fields[2 * j] = name, argv[first + j - 1]
  end
  local image = IMAGE * 2
  if #fields[image] > max_bytes then  -- it would push out all others
    fields[image] = ''
  end
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  local total = (tonumber(field_of(newest, 'total')) or 0) + #fields[image]
  fields[#fields + 1], fields[#fields + 2] = 'total', string.format('%.0f', total)
  redis.call('XADD', key, 'MAXLEN', '~', max_entries, '*', unpack(fields))
  while true do
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    local before = (tonumber(field_of(oldest, 'total')) or 0) - #field_of(oldest, 'image')
    if total - before <= max_bytes then
      return
    end
    redis.call('XDEL', key, oldest[1])
  end
end
