-- The newest row of each view not after the spine time: one ASOF join per view.
SELECT s.row_id, {columns}
FROM '{folder}/spine.parquet' s
{joins}
ORDER BY s.row_id
