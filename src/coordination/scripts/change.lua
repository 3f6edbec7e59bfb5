#!lua
-- A stream changes hands, if its fence is the one expected. KEYS: head. ARGV: number and nonce expected ('' for a stream
-- that nobody ever had), then those of the new holder, and who that is ('' for nobody). Whoever had the stream before is
-- refused from here on.
local held = redis.call('HMGET', KEYS[1], 'number', 'nonce', 'format')
if held[3] and held[3] ~= '1' then
  return 0
end
local number, nonce = held[1] or '', held[2] or ''
if number == ARGV[3] and nonce == ARGV[4] then
  -- It was done, and the answer was lost.
  return 1
end
if number ~= ARGV[1] or nonce ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'number', ARGV[3], 'nonce', ARGV[4], 'holder', ARGV[5], 'turn', '0')
return 1
