#!lua
-- Stores a refresh token, unless this number or a higher one is stored. KEYS: refresh. ARGV: number, secret.
if tonumber(redis.call('HMGET', KEYS[1], 'number')[1] or '0') >= tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'number', ARGV[1], 'secret', ARGV[2])
return 1
