-- What comes before the scripts that note sessions.

-- Milliseconds since 1970 by Redis's clock, the one that replicas have in common.
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Notes in the index of a user's sessions when one of them ends (ms). The index lives as long as the last of
-- them, whichever was noted last: one that went before would leave sessions that nothing ends.
local function note(index, id, ends)
    redis.call('ZADD', index, ends, id)
    redis.call('PEXPIREAT', index, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2])
end

