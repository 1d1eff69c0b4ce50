-- Put what a dead letter holds back into the images stream and take the letter away, or do nothing at all.
-- Only who finds the letter adds, so a repeat after a lost reply changes nothing. XDEL comes behind XADD: an XADD that
-- fails must leave the letter.
-- KEYS: images, dead, and seen if the image has a claim on its id.  ARGV: letter, batch, and with seen: id, its owner;
-- the claim is given up for the new entry to make anew, which would be taken for a repeat of the old one.
-- Returns the new entry's id, '' if the letter was gone.
if #redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1]) == 0 then
  return ''
end
if KEYS[3] and redis.call('HGET', KEYS[3], ARGV[3]) == ARGV[4] then
  redis.call('HDEL', KEYS[3], ARGV[3])
end
local entry = redis.call('XADD', KEYS[1], '*', 'batch', ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[1])
return entry
