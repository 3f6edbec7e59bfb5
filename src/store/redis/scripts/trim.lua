#!lua
-- Removes one slice of the entries beyond the retention, never the newest entry. KEYS: head, log.
-- ARGV: number, nonce, entries to keep, minimum receive time (in the format of envelopes, where text order is time
-- order), bytes to keep, entries of a slice, overhead of an entry.
-- Returns the oldest entry ('' for none), whether there is more to remove, and the server's time in ms.
local head, log = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local millis = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', head, 'number', 'nonce', 'last', 'bytes', 'first')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then
  return {'', 0, millis}
end
local last, bytes = tonumber(held[3]), tonumber(held[4] or '0')
local beyond, moment, room = last - tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local slice, overhead = tonumber(ARGV[6]), tonumber(ARGV[7])
local gone, freed, first = 0, 0, nil
local function outlived(entry)
  first = tonumber(string.match(entry[1], '^%d+'))
  local received = string.match(entry[2][2], ',"receivedtime":"([^"]*)"') or moment
  return first < last and (first <= beyond or received < moment or bytes - freed > room)
end
-- Usually nothing expired, which the oldest entry shows.
local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', '1')[1]
if oldest and outlived(oldest) then
  for _, entry in ipairs(redis.call('XRANGE', log, '-', '+', 'COUNT', slice)) do
    if not outlived(entry) then
      break
    end
    gone, freed, first = gone + 1, freed + #entry[2][2] + overhead, first + 1
  end
end
first = first and string.format('%.0f', first) or ''
if gone > 0 then
  redis.call('XTRIM', log, 'MINID', first .. '-0')
  redis.call('HINCRBY', head, 'bytes', -freed)
end
-- Also corrects a value that another program has set.
if first ~= '' and held[5] ~= first and (held[5] or gone > 0) then
  redis.call('HSET', head, 'first', first)
end
return {first, gone == slice and 1 or 0, millis}
