// The little Markdown that answers use most, as elements and text nodes. No text of the model ever
// becomes markup or a link: what is not understood here is shown as it was written.
// Every pattern takes time linear in the text: models repeat themselves, also "````````".

const FENCE = /^(\s*)(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)/s;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(?=\S)/;
const TABLE = /^\s*\|/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const INLINE = /`([^`]+)`|\*\*(?=\S)([^*]+)\*\*|(?<![\w*])\*(?=\S)([^*]*[^\s*])\*(?![\w*])/g;

const GROWS = new Set(["text", "table", "list"]); // kinds of which several lines are one block
const DEEPEST = 12; // spaces before an item of a list

/** Shows `text` in `place`. A text that has grown changes only the blocks that it touches. */
export function show(place, text) {
  const blocks = split(text);
  blocks.forEach((block, i) => {
    const shown = place.children[i];
    const source = JSON.stringify(block);
    if (shown?.source === source) return;
    const made = Object.assign(build(block), { source });
    if (shown) shown.replaceWith(made);
    else place.append(made);
  });
  while (place.children.length > blocks.length) place.lastChild.remove();
}

/** A text as blocks of one kind each; a fence that is still open holds the rest. */
function split(text) {
  const blocks = [];
  let open = null; // what the next line may continue
  for (const line of text.split(/\r\n|\n|\r/)) {
    if (open?.fence) {
      if (closes(open.fence, line.trim())) open = null;
      else open.lines.push(line.startsWith(open.indent) ? line.slice(open.indent.length) : line);
      continue;
    }
    const block = classify(line);
    if (block.kind === open?.kind && GROWS.has(block.kind)) open.lines.push(...block.lines);
    else if (block.kind === "text" && open?.kind === "list") open.lines.push({ more: line.trim() });
    else if (block.kind === "blank") open = null;
    else blocks.push((open = block));
  }
  return blocks;
}

function closes(fence, line) {
  return line.length >= fence.length && line === fence[0].repeat(line.length);
}

function classify(line) {
  if (!line.trim()) return { kind: "blank" };
  const fence = FENCE.exec(line);
  if (fence) {
    const [, indent, marks, after] = fence;
    return { kind: "code", lines: [], fence: marks, indent, language: after.trim().split(/\s/)[0] };
  }
  const heading = HEADING.exec(line);
  if (heading) return { kind: "heading", level: heading[1].length, lines: [heading[2]] };
  if (RULE.test(line)) return { kind: "rule" };
  const item = ITEM.exec(line);
  if (item) {
    const [before, indent, mark] = item;
    const number = /\d/.test(mark) ? parseInt(mark, 10) : null;
    const depth = Math.min(indent.length, DEEPEST);
    return { kind: "list", lines: [{ depth, number, text: line.slice(before.length) }] };
  }
  return { kind: TABLE.test(line) ? "table" : "text", lines: [line] };
}

function build({ kind, lines, level, language }) {
  switch (kind) {
    case "code":
    case "table":
      return preformatted(lines.join("\n"), language);
    case "heading":
      return inline(element(`h${Math.min(level + 2, 6)}`), lines[0]);
    case "rule":
      return element("hr");
    case "list":
      return lists(element("div"), lines.slice(), 0);
  }
  return inline(element("p"), lines.join("\n"));
}

function element(name) {
  return document.createElement(name);
}

function preformatted(text, language) {
  const pre = element("pre");
  pre.tabIndex = 0; // so that the keyboard can scroll it sideways
  if (language) pre.dataset.language = language;
  pre.append(Object.assign(element("code"), { textContent: text }));
  return pre;
}

/** Appends the items of at least this depth to `place`: numbers and bullets in lists of their own. */
function lists(place, items, depth) {
  let list = null;
  while (items.length && (items[0].more !== undefined || items[0].depth >= depth)) {
    const item = items[0];
    if (item.more !== undefined) {
      inline(list.lastChild, `\n${items.shift().more}`);
    } else if (list && item.depth > list.depth + 1) {
      lists(list.lastChild, items, item.depth);
    } else {
      if (list?.numbered !== (item.number !== null)) place.append((list = emptyList(item)));
      list.append(inline(element("li"), items.shift().text));
    }
  }
  return place;
}

function emptyList({ depth, number }) {
  const list = element(number === null ? "ul" : "ol");
  if (number !== null) list.start = number;
  return Object.assign(list, { depth, numbered: number !== null });
}

/** Appends a text to `place`, with its code, bold and italic parts. */
function inline(place, text) {
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, code, strong, em] = found;
    place.append(text.slice(end, found.index));
    const part = element(code !== undefined ? "code" : strong !== undefined ? "strong" : "em");
    part.textContent = code ?? strong ?? em;
    place.append(part);
    end = found.index + whole.length;
  }
  place.append(text.slice(end));
  return place;
}
