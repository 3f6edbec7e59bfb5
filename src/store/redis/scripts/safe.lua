#!lua
-- Publishes the offset up to which replicas have the log. KEYS: head, log. ARGV: number, nonce, offset.
local held = redis.call('HMGET', KEYS[1], 'number', 'nonce')
if held[1] == ARGV[1] and held[2] == ARGV[2] then
  redis.call('HSET', KEYS[1], 'safe', ARGV[3])
end
return 1
