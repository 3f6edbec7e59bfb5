#!lua
-- Renews a membership and lists the live replicas. KEYS: the set of replicas, the caller's membership. ARGV: the caller,
-- its membership, the lifetime in ms, the prefix of all memberships' keys. Returns replicas and memberships in turn.
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
local members = {}
for _, replica in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  -- A key of another type is not a membership: the caller gets an empty text and reports it.
  local membership = redis.pcall('GET', ARGV[4] .. replica)
  if type(membership) == 'table' then
    membership = ''
  end
  if membership then
    members[#members + 1] = replica
    members[#members + 1] = membership
  else
    redis.call('SREM', KEYS[1], replica)
  end
end
return members
