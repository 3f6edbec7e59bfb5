#!lua flags=no-writes
-- Lists dead letters of a sink. KEYS: the sink. ARGV: the number after which to begin, how many. Returns pairs of number
-- and dead letter in order.
local SLICE = 100
local held = redis.call('HMGET', KEYS[1], 'letter_first', 'letter_next')
local number = math.max(tonumber(held[1] or '1'), tonumber(ARGV[1]) + 1)
local upcoming, limit = tonumber(held[2] or '1'), tonumber(ARGV[2])
local found = {}
while number < upcoming and #found < limit do
  local fields = {}
  for ahead = number, math.min(number + SLICE, upcoming) - 1 do
    fields[#fields + 1] = 'letter:' .. string.format('%.0f', ahead)
  end
  for index, letter in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do
    if letter and #found < limit then
      found[#found + 1] = {string.format('%.0f', number + index - 1), letter}
    end
  end
  number = number + #fields
end
return found
