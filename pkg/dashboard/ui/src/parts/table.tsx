import type { ComponentChildren, JSX } from "preact";
import { useState } from "preact/hooks";
import { t } from "../i18n/i18n";
import { Icon } from "./icons";

export interface Column<R> {
  name: string;
  cell: (row: R, index: number) => ComponentChildren;
  /** Figures stand at the right. */
  num?: boolean;
  /** By what to sort; without it the column is none to sort by. */
  sort?: (row: R) => number | string;
}

interface Props<R> {
  label: string;
  columns: Column<R>[];
  rows: R[];
  id: (row: R) => string;
  empty: string;
  /** How many rows are shown; beyond that a filter is of more use than scrolling. */
  most?: number;
}

/** Table shows rows. On a narrow page each row becomes a card, its cells labelled. */
export function Table<R>({ label, columns, rows, id, empty, most = 200 }: Props<R>): JSX.Element {
  const [order, setOrder] = useState<{ column: number; down: boolean } | null>(null);
  if (rows.length === 0) return <p class="dim">{empty}</p>;
  const by = order && columns[order.column]?.sort;
  const sorted = by ? [...rows].sort((a, b) => compare(by(a), by(b)) * (order.down ? -1 : 1)) : rows;
  // Of figures the largest are of interest first, of names the first.
  const press = (column: number): void => setOrder(order?.column === column ? { column, down: !order.down } : { column, down: columns[column]?.num ?? false });
  return (
    <>
      <div class="scroll">
        <table aria-label={label}>
          <thead>
            <tr>
              {columns.map((c, i) => {
                const here = order?.column === i;
                return (
                  <th key={c.name} scope="col" class={c.num ? "num" : undefined} aria-sort={here ? (order.down ? "descending" : "ascending") : undefined}>
                    {c.sort ? <button type="button" class="sort" onClick={() => press(i)}>{c.name}{here && <Icon name={order.down ? "down" : "up"} />}</button> : c.name}
                  </th>
                );
              })}
            </tr>
          </thead>
          <tbody>
            {sorted.slice(0, most).map((row, n) => (
              <tr key={id(row)} data-key={id(row)}>
                {columns.map((c) => <td key={c.name} class={c.num ? "num" : undefined} data-label={c.name}>{c.cell(row, n)}</td>)}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {sorted.length > most && <p class="dim">{t("list.more", { n: sorted.length - most })}</p>}
    </>
  );
}

function compare(a: number | string, b: number | string): number {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
}
