#!lua
-- Stores a token, unless this generation or a newer one is stored or another replica has the lock. Releases the lock.
-- KEYS: token, generation, lock. ARGV: owner, generation, lifetime and remaining lifetime in ms, secret, channel.
local holder = redis.call('GET', KEYS[3])
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local newer = last >= tonumber(ARGV[2])
if not newer and holder and holder ~= ARGV[1] then
  return 'lost'
end
if not newer then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'generation', ARGV[2], 'lifetime', ARGV[3], 'secret', ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('SET', KEYS[2], ARGV[2])
  redis.call('PUBLISH', ARGV[6], ARGV[2])
end
if holder == ARGV[1] then
  redis.call('DEL', KEYS[3])
end
return newer and 'newer' or 'done'
