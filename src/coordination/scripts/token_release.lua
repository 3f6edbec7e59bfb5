#!lua
-- Releases the caller's lock. KEYS: lock, pause. ARGV: owner, pause in ms during which no replica sends a token request
-- (0 for none).
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
end
return 1
