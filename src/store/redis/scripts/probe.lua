#!lua
-- Tries every command of the other scripts and leaves no key. KEYS: a key for the test. ARGV: a channel. Returns a line
-- for each rejected command.
local probe = KEYS[1]
local refused = {}
local function try(name, ...)
  local answer = redis.pcall(...)
  -- Where DEL is rejected, the key of one command may have the wrong type for the next one, which was not rejected.
  if type(answer) == 'table' and answer.err and not string.find(answer.err, 'WRONGTYPE', 1, true) then
    refused[#refused + 1] = name .. ': ' .. answer.err
  end
end
try('info', 'INFO', 'replication')
try('time', 'TIME')
try('hset', 'HSET', probe, 'number', '1')
try('hmget', 'HMGET', probe, 'number')
try('hgetall', 'HGETALL', probe)
try('hincrby', 'HINCRBY', probe, 'number', '1')
try('pexpire', 'PEXPIRE', probe, '1000')
try('pttl', 'PTTL', probe)
try('hdel', 'HDEL', probe, 'number')
try('del', 'DEL', probe)
try('set', 'SET', probe, '1', 'PX', '1000')
try('get', 'GET', probe)
try('type', 'TYPE', probe)
redis.pcall('DEL', probe)
try('sadd', 'SADD', probe, '1')
try('smembers', 'SMEMBERS', probe)
try('srem', 'SREM', probe, '1')
redis.pcall('DEL', probe)
try('publish', 'PUBLISH', ARGV[1], '')
try('xadd', 'XADD', probe, 'NOMKSTREAM', '1-0', 'a', 'b')
try('xrange', 'XRANGE', probe, '-', '+')
try('xrevrange', 'XREVRANGE', probe, '+', '-')
try('xtrim', 'XTRIM', probe, 'MINID', '1')
return refused
