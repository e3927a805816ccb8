-- The part of Quarto's markup that the notebooks use, for plain Pandoc: callouts, tabsets, margin notes, numbered
-- figures, tables and equations, and references to them. What is not known here is reported as a warning.
local utils = pandoc.utils
local names = {fig = 'Figure', tbl = 'Table', eq = 'Equation'}
local counts, numbers = {fig = 0, tbl = 0, eq = 0}, {}
local known = {}
for class in ('cell cell-output cell-output-display cell-output-stdout cell-output-stderr figure columns column column-margin column-page column-body-outset aside ' ..
              'csl-bib-body csl-entry references hanging-indent callout callout-title tabset tab-pane'):gmatch '%S+' do
  known[class] = true
end
local titles = {note = 'Note', tip = 'Tip', warning = 'Warning', important = 'Important', caution = 'Caution'}
local gfm = FORMAT:match 'gfm' or FORMAT:match 'markdown'

local warn = pandoc.log.warn

local function number(id)  -- the number of a labelled thing, given in document order
  local kind = id:match '^(%a+)%-'
  if not names[kind] then return end
  if numbers[id] then warn('label used twice: ' .. id) end
  counts[kind] = counts[kind] + 1
  numbers[id] = counts[kind]
  return ('%s\u{a0}%d'):format(names[kind], counts[kind])
end

local function callout(div)
  local kind = table.concat(div.classes, ' '):match 'callout%-(%a+)'
  if not kind then return end
  if not titles[kind] then warn('unknown construct: callout-' .. kind) return end
  local body, title = div.content, pandoc.Inlines(titles[kind])
  if div.attributes.title then title = utils.blocks_to_inlines(pandoc.read(div.attributes.title).blocks)
  elseif body[1] and body[1].t == 'Header' then title = body[1].content; body:remove(1) end
  if gfm then
    local alert = pandoc.Para{pandoc.RawInline('markdown', '[!' .. kind:upper() .. ']'), pandoc.SoftBreak(), pandoc.Strong(title)}
    return pandoc.BlockQuote(pandoc.Blocks{alert} .. body)
  end
  local head, fold = pandoc.Span(title, {class = 'callout-title'}), div.attributes.collapse
  local attr = {id = div.identifier, class = 'callout callout-' .. kind}
  if not fold then return pandoc.Div(pandoc.Blocks{pandoc.Plain{head}} .. body, attr) end
  local html = function(s) return pandoc.RawBlock('html', s) end
  return pandoc.Div(pandoc.Blocks{html(fold == 'true' and '<details>' or '<details open>'), html '<summary>', pandoc.Plain{head},
    html '</summary>'} .. body .. pandoc.Blocks{html '</details>'}, attr)
end

local tabsets = 0
local function tabset(div)
  if not div.classes:includes 'panel-tabset' then return end
  if gfm then return div.content end
  tabsets = tabsets + 1
  local out, level, body = pandoc.Blocks{}, nil, nil
  for _, block in ipairs(div.content) do
    if block.t == 'Header' and (not level or block.level == level) then
      level, body = block.level, pandoc.Div({}, {class = 'tab-pane'})
      local id = ('tab-%d-%d'):format(tabsets, #out // 2 + 1)
      out:insert(pandoc.RawBlock('html', ('<input type="radio" name="tabs-%d" id="%s"%s><label for="%s">%s</label>'):format(
        tabsets, id, #out == 0 and ' checked' or '', id, utils.stringify(block))))
      out:insert(body)
    elseif body then body.content:insert(block); out[#out] = body
    else warn 'unknown construct: a tabset must begin with a heading' end
  end
  return pandoc.Div(out, {class = 'tabset'})
end

local function check_classes(div)
  for _, class in ipairs(div.classes) do
    if not known[class] then warn('unknown construct: div .' .. class) end
  end
end

local function labelled_div(div)  -- ::: {#fig-x} content, and its last paragraph as the caption
  local label = number(div.identifier)
  if not label then return end
  local caption = div.content[#div.content]
  if not caption or caption.t ~= 'Para' or #div.content < 2 then warn('no caption: ' .. div.identifier) return end
  div.content:remove()
  return pandoc.Figure(div.content, {pandoc.Plain(pandoc.Inlines{pandoc.Str(label .. ':'), pandoc.Space()} .. caption.content)},
    {id = div.identifier})
end

local number_things = {
  traverse = 'topdown',
  Div = function(div)
    check_classes(div)
    return labelled_div(div)
  end,
  Figure = function(figure)
    local label = number(figure.identifier)
    if not label or not figure.caption.long[1] then return end
    local caption = figure.caption.long[1]
    caption.content = pandoc.Inlines{pandoc.Str(label .. ':'), pandoc.Space()} .. caption.content
    figure.caption.long[1] = caption
    return figure, false
  end,
  Table = function(tbl)
    local caption = tbl.caption.long
    local id = tbl.identifier ~= '' and tbl.identifier or utils.stringify(caption):match '{#(tbl%-[%w%-_]+)}'
    local label = id and number(id)
    if not label then return end
    caption = caption:walk{Str = function(s) if s.text:match '^{#tbl%-' then return {} end end}
    caption[1].content = pandoc.Inlines{pandoc.Str(label .. ':'), pandoc.Space()} .. caption[1].content
    tbl.caption.long, tbl.identifier = caption, id
    return tbl
  end,
  Inlines = function(inlines)  -- $$ ... $$ {#eq-x}
    local out, i, changed = pandoc.Inlines{}, 1, false
    while i <= #inlines do
      local j = i + 1
      if inlines[j] and (inlines[j].t == 'Space' or inlines[j].t == 'SoftBreak') then j = j + 1 end
      local display = inlines[i].t == 'Math' and inlines[i].mathtype == 'DisplayMath'
      local id, rest = nil, nil
      if display and inlines[j] and inlines[j].t == 'Str' then id, rest = inlines[j].text:match '^{#(eq%-[%w%-_]+)}(.*)$' end
      if id then
        number(id)
        local tag = pandoc.Span({pandoc.Str('(' .. numbers[id] .. ')')}, {class = 'number'})
        out:insert(gfm and inlines[i] or pandoc.Span({inlines[i], tag}, {id = id, class = 'equation'}))
        if rest ~= '' then out:insert(pandoc.Str(rest)) end
        i, changed = j + 1, true
      else out:insert(inlines[i]); i = i + 1 end
    end
    if changed then return out end
  end,
  Code = function(code)  -- a fence such as ```{mermaid} reads as inline code here
    if code.text:match '^{%a+}' then warn('unknown construct: ' .. code.text:match '^{%a+}') end
  end,
}

local refer = {
  Cite = function(cite)
    local out = pandoc.Inlines{}
    for i, citation in ipairs(cite.citations) do
      local kind = citation.id:match '^(%a+)%-'
      if not names[kind] then return end
      local n = numbers[citation.id]
      if not n then warn('unresolved reference: @' .. citation.id) return end
      if i > 1 then out:extend{pandoc.Str ',', pandoc.Space()} end
      local words = citation.mode == 'SuppressAuthor' and tostring(n) or ('%s\u{a0}%d'):format(names[kind], n)
      out:insert(pandoc.Link(words, '#' .. citation.id))
    end
    return out
  end,
  Image = function(image)
    local alt = image.attributes['fig-alt']
    image.attributes['fig-alt'] = nil
    if alt then image.attributes.alt = alt
    elseif #image.caption == 0 then warn('picture without alt text: ' .. image.src) end
    return image
  end,
}

function Pandoc(doc)
  for class in utils.stringify(doc.meta.styled or ''):gmatch '%S+' do known[class] = true end
  doc.meta.styled = nil
  doc = doc:walk{Div = function(div) return callout(div) or tabset(div) end}
  for kind in pairs(titles) do known['callout-' .. kind] = true end
  doc = utils.citeproc(doc:walk(number_things):walk(refer))
  doc.meta.references, doc.meta.bibliography = nil, nil
  return doc:walk{
    Header = function(header) if header.identifier == 'bibliography' then header.level = 2 return header end end,
    Div = gfm and function(div) return div.content end,
    Span = gfm and function(span) return span.content end,
    Cite = gfm and function(cite) return cite.content end,
  }
end
