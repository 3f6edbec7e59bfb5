#!lua
-- Creates, changes or deletes the record of a consumer by compare-and-set. KEYS: the records of all consumers. ARGV:
-- consumer, expected record ('' for none), new record ('' for none), most consumers. The field ':count' has their number.
-- Returns 1 if the record is the new one, 0 if it was not the expected one, 2 if there are too many consumers.
local found = redis.call('HMGET', KEYS[1], ARGV[1], ':count')
local record, count = found[1] or '', tonumber(found[2] or '0') or 0
if record == ARGV[3] then
  return 1
end
if record ~= ARGV[2] then
  return 0
end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HSET', KEYS[1], ':count', string.format('%.0f', math.max(count - 1, 0)))
  return 1
end
if record == '' then
  if count >= tonumber(ARGV[4]) then
    return 2
  end
  redis.call('HSET', KEYS[1], ':count', string.format('%.0f', count + 1))
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
