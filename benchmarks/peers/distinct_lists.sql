-- The newest and the oldest three distinct values of several windows: one range join of the events, one group per value
-- with its newest and oldest time in each window, then the first few of these groups.
WITH found AS (
  SELECT s.row_id, e.c,
    {times}
  FROM '{folder}/spine.parquet' s
  JOIN '{folder}/events.parquet' e ON e.user_id = s.user_id AND e.ts >= s.edge - INTERVAL {widest} DAY AND e.ts < s.edge
  GROUP BY s.row_id, e.c
), lists AS (
  SELECT row_id,
    {lists}
  FROM found GROUP BY row_id
)
SELECT s.row_id,
  {features}
FROM '{folder}/spine.parquet' s LEFT JOIN lists USING (row_id)
ORDER BY s.row_id
