#!lua
-- Moves the cursor of a sink in one stream and stores the entries that the sink could not deliver. KEYS: the sink.
-- ARGV: number and nonce of the fence, stream, expected cursor ('' for none), new cursor, bound of dead letters, then
-- the dead letters. Returns 'moved' (also for a repeated call), 'elsewhere', 'fenced' or 'full'.
local function text(number)
  return string.format('%.0f', number)
end
local LETTERS = 6
local cursor = 'cursor:' .. ARGV[3]
local held = redis.call('HMGET', KEYS[1], 'number', 'nonce', cursor, 'letter_first', 'letter_next')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then
  return 'fenced'
end
local found = held[3] or ''
if found == ARGV[5] then
  return 'moved'
end
if found ~= ARGV[4] then
  return 'elsewhere'
end
local first, upcoming = tonumber(held[4] or '1'), tonumber(held[5] or '1')
local count = #ARGV - LETTERS
if count > 0 and upcoming + count - first > tonumber(ARGV[6]) then
  return 'full'
end
for index = 1, count do
  redis.call('HSET', KEYS[1], 'letter:' .. text(upcoming), ARGV[LETTERS + index])
  upcoming = upcoming + 1
end
redis.call('HSET', KEYS[1], cursor, ARGV[5], 'letter_first', text(first), 'letter_next', text(upcoming))
return 'moved'
