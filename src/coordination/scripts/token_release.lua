#!lua
-- Gives the lock back, if it is still the caller's. KEYS: lock, pause. ARGV: owner, for how long nobody shall ask (0:
-- whoever wants may).
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
end
return 1
