-- Returns the ids of the sessions of a user, those that expire first at first. KEYS: index.
return redis.call('ZRANGE', KEYS[1], 0, -1)
