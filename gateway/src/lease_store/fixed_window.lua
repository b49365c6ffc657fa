-- Fixed window: `limit` units in each window of `period`, which the first lease opens. A lease ends with
-- its window. Fields: `e` end of the window, `u` units leased in it. The end identifies the window.

local fields = redis.call('HMGET', KEYS[1], 'e', 'u')
local window_end, used = tonumber(fields[1]), tonumber(fields[2])
if not window_end or now >= window_end then
  window_end, used = now + period, 0
end
-- The clock was set back.
window_end = math.min(window_end, now + period)
if returned > 0 and returned_incarnation == window_end then
  used = math.max(used - returned, 0)
end
local granted = units_to_grant(limit - used)
used = used + granted
if granted > 0 or returned > 0 and returned_incarnation == window_end then
  set('e', window_end)
  set('u', used)
  expire_after(window_end - now)
end
local left = window_end - now
return {now, granted, limit - used, left, left, left, window_end, 0, 0}
