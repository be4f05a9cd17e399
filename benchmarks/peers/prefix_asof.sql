-- What sums give over several windows: prefix sums per user, looked up at all window ends by one ASOF join.
WITH prefix AS MATERIALIZED (
  SELECT user_id, ts, {running}
  FROM {tiles}
), ends AS (
  SELECT row_id, user_id, unnest({ends}) AS days, edge FROM '{folder}/spine.parquet'
), found AS (
  SELECT e.row_id, e.days, {found}
  FROM (SELECT row_id, user_id, days, edge - to_days(CAST(days AS INTEGER)) AS until FROM ends) e
  ASOF LEFT JOIN prefix p ON p.user_id = e.user_id AND p.ts < e.until
), sides AS (
  SELECT row_id, {sides}
  FROM found GROUP BY row_id
)
SELECT row_id,
  {features}
FROM sides
ORDER BY row_id
