#!lua
-- Removes a dead letter of a sink. KEYS: the sink. ARGV: its number. Returns 1 if it was there.
local removed = redis.call('HDEL', KEYS[1], 'letter:' .. ARGV[1])
local held = redis.call('HMGET', KEYS[1], 'letter_first', 'letter_next')
local first, upcoming = tonumber(held[1] or '1'), tonumber(held[2] or '1')
local function field()
  return 'letter:' .. string.format('%.0f', first)
end
while first < upcoming and not redis.call('HMGET', KEYS[1], field())[1] do
  first = first + 1
end
if removed == 1 then
  redis.call('HSET', KEYS[1], 'letter_first', string.format('%.0f', first))
end
return removed
