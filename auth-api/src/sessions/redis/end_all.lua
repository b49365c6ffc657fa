-- Ends sessions of a user and publishes an invalidation of all. KEYS: index, session to keep or an unused key, then the
-- sessions to end. ARGV: id to keep or an empty string, user, invalidation channel, header of the invalidation, time
-- (µs) at which the password was verified in the session to keep, then the ids of the sessions to end. Returns the
-- number of ended sessions, and that of the sessions that the index still has, beside the one to keep.
local FIRST_KEY, FIRST_ID = 3, 6
local rejection = rejection_by_replaced_primary(KEYS[1])
if rejection then
    return rejection
end
if ARGV[1] ~= '' and redis.call('EXISTS', KEYS[2]) == 1 then
    -- Not to an earlier time: of two changes of the password in one session, the one that fails may be the last to get here.
    local auth = tonumber(redis.call('HMGET', KEYS[2], 'auth')[1] or '')
    if not auth or auth < tonumber(ARGV[5]) then
        -- Before every other write: a Redis that rejects it, since it is out of memory, has changed nothing.
        redis.call('HSET', KEYS[2], 'auth', ARGV[5])
    end
end
local ended = 0
for position = FIRST_KEY, #KEYS do
    ended = ended + redis.call('DEL', KEYS[position])
    redis.call('ZREM', KEYS[1], ARGV[FIRST_ID + position - FIRST_KEY])
end
local others = redis.call('ZCARD', KEYS[1])
if ARGV[1] ~= '' then
    if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
        others = others - 1
    end
end
-- Also if none was left: the invalidation of those that had ended before may not be acknowledged yet.
redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' user:' .. ARGV[2])
return { ended, others }
