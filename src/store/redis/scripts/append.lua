#!lua
-- Checks fence and order, and stores entries and position in one step. KEYS: head, log. ARGV: number, nonce, turn, next
-- turn, last before, last after, position, heard_at, bytes, replicated offset ('' where durability does not require
-- it), epoch, feed with its position, whether the entries report a loss; then the envelope of each entry.
local head, log = KEYS[1], KEYS[2]
local held = redis.call('HMGET', head, 'number', 'nonce', 'turn', 'last', 'epoch')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then
  return {'fenced', held[4] or ''}
end
if held[5] ~= ARGV[11] then
  return {'elsewhere', held[4] or ''}
end
if held[3] == ARGV[4] and held[4] == ARGV[6] then
  -- It was applied, and its reply was lost. Writes once more, so that the wait for a replica covers the append.
  redis.call('HSET', head, 'turn', ARGV[4])
  return {'done', held[4]}
end
if held[3] ~= ARGV[3] or held[4] ~= ARGV[5] then
  return {'elsewhere', held[4] or ''}
end
local offset = tonumber(ARGV[5])
if offset > 0 and #ARGV > 13 and redis.call('TYPE', log).ok == 'none' then
  return {'emptied', held[4]}
end
for i = 14, #ARGV do
  offset = offset + 1
  redis.call('XADD', log, string.format('%.0f-0', offset), 'event', ARGV[i])
end
redis.call('HSET', head, 'turn', ARGV[4], 'last', ARGV[6], 'position', ARGV[7], 'heard_at', ARGV[8],
  'feed', ARGV[12])
redis.call('HINCRBY', head, 'bytes', ARGV[9])
if ARGV[13] ~= '' then
  redis.call('HSET', head, 'damaged', '')
end
if ARGV[10] ~= '' then
  redis.call('HSET', head, 'safe', ARGV[10])
end
return {'done', ARGV[6]}
